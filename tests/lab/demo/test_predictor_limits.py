from pathlib import Path

import pytest
import torch

from hnloader.demo import predictor_path
from lab.demo.predictor_limits import fit
from lab.demo.predictor_study import Study
from lab.demo.subjects import subjects


@pytest.mark.slow
def test_fitted_values_lower_the_loss_and_keep_the_bases(tmp_path: Path) -> None:
    study = Study(tmp_path, predictor_path(), prompts=1, seeds=1)
    (style,) = subjects(["midnight"])
    predicted = study.predict(style, 0)
    fitted = fit(study, study.predictor.stored.predictor, style, steps=30)
    assert study.loss(style, fitted) < 0.8 * study.loss(style, predicted)
    pairs = [(one, other) for one, other in zip(predicted.parameters(), fitted.parameters(), strict=True)]
    unchanged = [torch.equal(one, other) for one, other in pairs]
    # Of each side, the first layer is the same; the second has other weights.
    assert unchanged == [True, True, False, False] * (len(pairs) // 4)
