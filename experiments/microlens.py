"""SEMCo on MicroLens.

Paper     Meehan and Pauwels, Sparse Contrastive Learning for Content-Based Cold Item
          Recommendation, SIGIR 2026 (arXiv 2604.12990), Table 2
Data      microlens.inter (98,129 users, 17,228 items, 705,174 pairs), image_feat.npy
          [17228, 1024], text_feat.npy [17228, 1024] and video_feat.npy [17228, 768], in
          $JAXCOLD_DATA/microlens.
Published with MMRec, https://github.com/enoche/MMRec (folder data links the files)
Command   python -m experiments.main --config=experiments/microlens.py --workdir=runs/microlens
Expected  cold test, all cold items compete, mean of five runs in the paper:
          softmax    Recall@20 0.1336  NDCG@20 0.0590  MDG@20 0.0504  Gini 0.5409
          entmax15   Recall@20 0.1372  NDCG@20 0.0600  MDG@20 0.0511  Gini 0.6155
          sparsemax  Recall@20 0.1332  NDCG@20 0.0594  MDG@20 0.0488  Gini 0.6052
          Choose the map with --config.model.alpha=1, 1.5 or 2 (the default).
"""

from ml_collections import config_dict

from experiments import config


def get_config(model: str = "semco") -> config_dict.ConfigDict:
    """The configuration; `experiments.config` explains the fields."""
    c = config.get_config(model, dataset="microlens", about=__doc__ or "")
    c.data.modes = ("image", "text", "video")
    c.data.published = "https://github.com/enoche/MMRec (see its data folder)"
    return c
