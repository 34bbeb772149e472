"""Fits, saves and loads a SEMCo and a SASRec, then loads the models that the arguments name."""

import sys
import tempfile

import numpy as np
import pandas as pd

import jaxcold

log = pd.DataFrame([(u, (u + t) % 6, t) for u in range(20) for t in range(4)])
log.columns = ["user", "item", "time"]
text = pd.DataFrame(np.random.default_rng(0).normal(size=(7, 3)))  # item 6 is cold

semco = jaxcold.SEMCo.fit(log, {"text": text}, epochs=1, hidden=4, out=2, progress=False)
sasrec = jaxcold.SASRec.fit(
    log, text, epochs=1, progress=False, dim=2, max_length=4, blocks=1, dropout=0.0, val_fraction=0
)
for model, asked in ((semco, [3]), (sasrec, {3: [0, 1]})):
    assert model.cold_items.tolist() == [6]
    with tempfile.TemporaryDirectory() as folder:
        model.save(f"{folder}/model")
        again = jaxcold.load(f"{folder}/model")
    pd.testing.assert_frame_equal(again.recommend(asked), model.recommend(asked))

for folder in sys.argv[1:]:
    model = jaxcold.load(folder)
    assert np.isfinite(model.item).all()
print("both recommenders fit, save and load;", jaxcold.__file__)
