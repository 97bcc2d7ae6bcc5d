import re
import sys

import numpy as np
import pytest
from conftest import make_causal_lm, make_masked_lm, randomize

import keras_igpt as igpt
from keras_igpt.objectives.open_model import names_a_file, open_model


def test_presets_files_and_addresses_are_opened(hub, palette, tmp_path):
    model = randomize(make_masked_lm(palette, num_layers=1))
    model.compile(**igpt.finetuning_recipe(0.001))
    model.save(tmp_path / "model.keras")
    model.save("hf://someone/model")
    for name in (tmp_path / "model.keras", "hf://someone/model"):
        assert names_a_file(str(name))
        opened = open_model(name, "--model")
        assert isinstance(opened, igpt.ImageGPTMaskedLM)
        assert not opened.compiled
        for new, old in zip(opened.get_weights(), model.get_weights(), strict=True):
            np.testing.assert_array_equal(new, old)
    assert not names_a_file("igpt_cifar10_8x8")
    assert isinstance(open_model("igpt_cifar10_8x8", "--model"), igpt.ImageGPTCausalLM)


def test_an_address_without_a_keras_model_is_said_in_one_line(hub):
    (hub / "openai/imagegpt-small").mkdir(parents=True)
    (hub / "openai/imagegpt-small/config.json").write_text('{"model_type": "imagegpt"}')
    for address, reason in (("someone/nothing", "OSError: 404 Client Error."), ("openai/imagegpt-small", "")):
        message = f"--model could not be opened: .*{re.escape(reason)}.*Received: hf://{address}"
        with pytest.raises(ValueError, match=message) as raised:
            open_model(f"hf://{address}", "--model")
        assert "load_huggingface_checkpoint" in str(raised.value)
        assert "\n" not in str(raised.value)


def test_without_the_hubs_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"^hf://someone/model needs .*pip install 'keras_igpt\[checkpoints\]'$"):
        open_model("hf://someone/model", "--model")


def test_a_damaged_file_is_not_called_missing(palette, tmp_path):
    make_causal_lm(palette, num_layers=1).save(tmp_path / "model.keras")
    whole = (tmp_path / "model.keras").read_bytes()
    (tmp_path / "model.keras").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(
        ValueError, match=r"^--model must be a whole \.keras file\. Received: .*model\.keras, which is cut"
    ):
        open_model(tmp_path / "model.keras", "--model")


def test_a_name_of_nothing_tells_what_it_may_be(tmp_path):
    with pytest.raises(
        ValueError, match=r"^`model` must be a \.keras file or one of .*hf://user/model.*missing\.keras$"
    ):
        open_model(tmp_path / "missing.keras", "`model`")
