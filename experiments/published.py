"""Table 2 of both papers: what `experiments.table` sets beside measured values.

Sources: Meehan and Pauwels, Sparse Contrastive Learning for Content-Based Cold Item
Recommendation, SIGIR 2026; Let It Go? Not Quite: Addressing Item Cold Start in Sequential
Recommendations with Content-Based Initialization, RecSys 2025. All values are means of five runs,
at cut-off 20 and 10.
"""

from collections.abc import Mapping

_COLD = ("Recall", "NDCG", "MDG", "Gini div.")
_SEQUENCES = ("cold HR", "warm HR", "HR", "cold NDCG", "warm NDCG", "NDCG")

# Rows of the table, in the order of the columns below.
_SEMCO = (
    "aldi",
    "clcrec",
    "gar",
    "gorec",
    "heater",
    "semco_softmax",
    "semco_entmax15",
    "semco_sparsemax",
    "semco_offline_softmax",
    "semco_offline_entmax15",
    "semco_offline_sparsemax",
    "semco_online_entmax15",
    "semco_online_sparsemax",
)
_LET_IT_GO = ("content_knn", "sasrec", "sasrec_content", "sasrec_delta")

# Data set -> a line per metric, a column per row.
_VALUES: Mapping[str, str] = {
    "clothing": """
        .0954 .1190 .1148 .1389 .1225 .1408 .1435 .1432 .1419 .1398 .1435 .1457 .1486
        .0453 .0599 .0541 .0638 .0561 .0684 .0697 .0699 .0703 .0702 .0715 .0701 .0717
        .0312 .0462 .0372 .0495 .0398 .0555 .0567 .0572 .0584 .0581 .0571 .0562 .0582
        .4415 .6185 .3516 .4840 .3630 .6316 .6694 .6841 .6698 .7106 .6871 .5989 .6307""",
    "electronics": """
        .0297 .0299 .0321 .0376 .0329 .0462 .0458 .0481 .0445 .0493 .0492 .0514 .0526
        .0130 .0138 .0148 .0171 .0149 .0210 .0211 .0217 .0201 .0223 .0223 .0230 .0236
        .0061 .0090 .0074 .0092 .0069 .0195 .0198 .0194 .0188 .0206 .0207 .0211 .0214
        .1759 .2864 .2483 .1523 .1279 .6381 .6749 .6233 .5578 .6117 .6265 .5950 .6201""",
    "onion": """
        .0406 .0577 .0464 .0299 .0544 .0777 .0825 .0806 .0831 .0886 .0863 .0889 .0910
        .0403 .0557 .0467 .0316 .0557 .0743 .0792 .0772 .0783 .0851 .0852 .0854 .0887
        .0114 .0159 .0128 .0104 .0152 .0237 .0251 .0246 .0249 .0268 .0268 .0259 .0267
        .1867 .1862 .2014 .1765 .1667 .4638 .4915 .4939 .4739 .5280 .4879 .4677 .5010""",
    "microlens": """
        .1075 .0914 .1180 .1294 .1203 .1336 .1372 .1332 .1391 .1411 .1371 .1387 .1455
        .0445 .0401 .0487 .0562 .0504 .0590 .0600 .0594 .0619 .0615 .0607 .0615 .0629
        .0328 .0325 .0359 .0448 .0384 .0504 .0511 .0488 .0532 .0522 .0537 .0499 .0524
        .3882 .3760 .4041 .3167 .3267 .5409 .6155 .6052 .5182 .5457 .6238 .5054 .5599""",
    "amazon-m2": """
        .454 .000 .435 .509
        .383 .610 .620 .617
        .388 .567 .607 .609
        .312 .000 .297 .359
        .232 .438 .448 .446
        .238 .407 .438 .440""",
    "amazon-beauty": """
        .043 .000 .032 .038
        .044 .072 .088 .092
        .044 .054 .074 .078
        .022 .000 .018 .022
        .024 .043 .053 .054
        .024 .033 .044 .046""",
    "zvuk": """
        .009 .000 .023 .034
        .000 .094 .088 .094
        .001 .082 .080 .087
        .006 .000 .014 .021
        .000 .063 .058 .060
        .001 .055 .052 .055""",
}


def published(kind: str, dataset: str, cutoff: int) -> dict[str, dict[str, float]]:
    """Row -> title of a column -> the paper's mean; empty for what no paper has.

    Args:
        kind: "pairs" or "sequences".
        dataset: its name.
        cutoff: of the metrics.
    """
    paper = (_COLD, _SEMCO, 20) if kind == "pairs" else (_SEQUENCES, _LET_IT_GO, 10)
    metrics, rows, own_cutoff = paper
    lines = [line.split() for line in _VALUES.get(dataset, "").split("\n") if line.strip()]
    if len(lines) != len(metrics) or cutoff != own_cutoff:
        return {}
    return {
        row: {metric: float(line[at]) for metric, line in zip(metrics, lines, strict=True)}
        for at, row in enumerate(rows)
    }
