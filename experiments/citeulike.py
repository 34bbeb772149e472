"""SEMCo on citeulike-a: articles, their tags and citations, and who saved them.

Paper     Meehan and Pauwels, Sparse Contrastive Learning for Content-Based Cold Item
          Recommendation, SIGIR 2026 (arXiv 2604.12990): the method; the paper has no citeulike-a
Data      5,551 users, 16,980 articles, 204,986 pairs. --config.data.content=raw (the default)
          computes both modes from users.dat, item-tag.dat, tags.dat and citations.dat, which are
          downloaded and checked where absent; --config.data.content=files reads
          citeulike-a.inter and *_feat.npy. Folder: $JAXCOLD_DATA/citeulike-a
Published https://github.com/js05212/citeulike-a (Wang, Chen, Li, IJCAI 2013)
Command   python -m experiments.main --config=experiments/citeulike.py --workdir=runs/citeulike
Expected  see experiments/RESULTS.md, which has the table of five seeds for every mapping
"""

from ml_collections import config_dict

from experiments import config


def get_config(model: str = "semco") -> config_dict.ConfigDict:
    """The configuration; `experiments.config` explains the fields."""
    c = config.get_config(model, dataset="citeulike-a", about=__doc__ or "")
    c.data.content = "raw"
    c.data.published = "https://github.com/js05212/citeulike-a"
    return c
