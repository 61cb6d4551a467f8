"""torch's C functions: arrays and tensors share memory, and packed weights are those of oneDNN."""

import gc
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from neuron_sum.errors import ArtifactError
from neuron_sum.runtimes import aoti, packing
from neuron_sum.runtimes.native import DTYPES, Graph, Tensor, call
from neuron_sum.runtimes.packing import Packer, packed


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (3,), (2, 3, 4)])
def test_a_tensor_and_its_array_share_memory(dtype: "np.dtype[np.generic]", shape: tuple[int, ...]) -> None:
    array = np.ones(shape, dtype)
    view = np.asarray(Tensor.of(array))
    assert (view.dtype, view.shape) == (array.dtype, array.shape)
    view[...] = 0
    assert not array.any()


def test_results_of_an_operator_have_their_strides_and_outlive_the_tensor() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    turned = np.asarray(Tensor.from_operator("aten::t", array))
    gc.collect()
    assert turned.tolist() == array.T.tolist()
    doubled = np.asarray(Tensor.from_operator("aten::exp", array))
    gc.collect()
    np.testing.assert_allclose(doubled, np.exp(array), rtol=1e-6)


def test_an_error_of_torch_is_an_exception() -> None:
    with pytest.raises(RuntimeError, match="aoti_torch_call_dispatcher failed"):
        call("aten::no_such_operator", np.ones(1, np.float32))


@pytest.mark.parametrize("shape", [(128, 64), (64, 192), (100, 72)])
def test_int8_weights_are_packed_as_by_onednn(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = np.random.default_rng(0)
    weights = [numbers.integers(-127, 128, shape, dtype=np.int8) for _ in range(3)]
    for blocked in (packing._blocked, lambda weight: np.zeros(4, np.uint8)):  # the second is never right
        monkeypatch.setattr(packing, "_blocked", blocked)
        packer = Packer()
        for weight in weights:
            found, expected = packer.pack(weight), packed(weight)
            assert np.array_equal(found.content(), expected.content())
            assert found.shape == expected.shape


def test_a_wrong_layout_is_found_if_the_first_weight_cannot_show_it(monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = packing._blocked
    monkeypatch.setattr(packing, "_blocked", lambda weight: blocked(weight[:, ::-1]))
    packer = Packer()
    for weight in (np.zeros((64, 64), np.int8), np.arange(64 * 64, dtype=np.int8).reshape(64, 64)):
        assert np.array_equal(packer.pack(weight).content(), packed(weight).content())


def test_a_package_of_an_earlier_version_is_rejected(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "graph.pt2", "w") as package:
        package.writestr("graph/data/aotinductor/model/x.wrapper.so", b"")
    with pytest.raises(ArtifactError, match=r"graph\.pt2 was compiled by an earlier version"):
        Graph(tmp_path / "graph.pt2")


def test_torch_can_be_imported_after_its_library() -> None:
    code = (
        "import os; os.environ['OMP_NUM_THREADS'] = '1'; import neuron_sum.runtimes.native as native; native.preload();"
        "native.library(); import torch; assert torch.ones(3).sum() == 3"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_prompts_are_padded_to_the_bucket_if_a_shorter_length_fails() -> None:
    """As after a product of oneDNN could not be prepared for lack of memory."""
    lengths = []

    def graph(ids: np.ndarray, mask: np.ndarray, slot: np.ndarray) -> list[Tensor]:
        lengths.append(ids.shape[1])
        if ids.shape[1] < 96:
            raise RuntimeError("could not create a primitive")
        return [Tensor.of(ids)]

    ids, mask, slot = np.ones((2, 96), np.int64), np.zeros((2, 96), np.int64), np.zeros(2, np.int64)
    mask[1, :40] = 1
    [found] = aoti._encoded(graph, 32, ids, mask, slot)
    assert lengths == [64, 96] and found.shape == (2, 96)
    mask[:] = 1
    with pytest.raises(RuntimeError, match="primitive"):
        aoti._encoded(lambda *_: graph(ids[:, :32], mask, slot), 32, ids, mask, slot)
