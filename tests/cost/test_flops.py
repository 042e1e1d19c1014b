"""Operations that torch's own counter passes over, against products that it does count."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from mpbook.cost import flops
from mpbook.cost.measure import count_flops


def both(module: nn.Module, *inputs: torch.Tensor) -> tuple[int, int]:
    """Operations of the forward pass, and of both."""

    def loss():
        y = module(*inputs)
        return (y[0] if isinstance(y, tuple) else y).square().sum()

    return count_flops(loss), count_flops(lambda: loss().backward())


@pytest.mark.parametrize("options", [{}, {"num_layers": 2}, {"bidirectional": True}], ids=str)
def test_an_lstm_multiplies_each_step_by_its_matrices(options):
    lstm = nn.LSTM(6, 4, **options)
    matrices = sum(p.numel() for p in lstm.parameters() if p.dim() == 2)
    x = torch.randn(5, 3, 6, requires_grad=True)
    assert both(lstm, x) == (2 * 15 * matrices, 3 * 2 * 15 * matrices)


@pytest.mark.parametrize("options", [{}, {"num_layers": 2}, {"bidirectional": True}], ids=str)
def test_cudnns_formula_counts_the_matrices_of_all_layers_and_no_bias(options):
    lstm = nn.LSTM(6, 4, **options)
    shapes = [tuple(p.shape) for p in lstm.parameters()]
    matrices = sum(p.numel() for p in lstm.parameters() if p.dim() == 2)
    assert flops._cudnn_rnn((5, 3, 6), shapes) == 2 * 15 * matrices


def test_recurrent_layers_of_products_agree_with_torchs_count():
    x = torch.randn(5, 3, 6, requires_grad=True)
    for make in (nn.GRU, nn.RNN):
        layer = make(6, 4)
        matrices = sum(p.numel() for p in layer.parameters() if p.dim() == 2)
        assert both(layer, x)[0] == 2 * 15 * matrices


def test_a_bilinear_layer_is_the_product_of_its_matrix_with_both():
    layer, a, b = nn.Bilinear(3, 4, 5), torch.randn(7, 3), torch.randn(7, 4)
    first = count_flops(lambda: torch.einsum("bi,oij->boj", a, layer.weight))
    assert both(layer, a, b)[0] == first == 2 * 7 * 3 * 4 * 5


def test_fused_attention_of_a_cpu_counts_as_its_products():
    q = torch.randn(2, 3, 16, 8, requires_grad=True)
    counted = []
    for backend in (SDPBackend.MATH, SDPBackend.FLASH_ATTENTION):
        with sdpa_kernel(backend):
            forward = count_flops(lambda: scaled_dot_product_attention(q, q, q))
            step = count_flops(lambda: scaled_dot_product_attention(q, q, q).sum().backward())
        counted.append((forward, step))
    assert counted[0][0] == counted[1][0] == 2 * 2 * 2 * 3 * 16 * 16 * 8
    assert counted[0][1] == 3 * counted[0][0]
    assert counted[1][1] == 3.5 * counted[0][0]  # the scores are computed once more


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda a, v: torch.mv(a, v), 2 * 12),
        (lambda a, v: torch.addmv(torch.ones(3), a, v), 2 * 12),
        (lambda a, v: torch.dot(v, v), 2 * 4),
        (lambda a, v: torch.addbmm(torch.ones(3, 3), a[None], a.T[None]), 2 * 3 * 4 * 3),
        (lambda a, v: torch.linalg.vector_norm(a), 0),  # of clipping: no product, and no warning
        (lambda a, v: torch.linalg.cross(a[:, :3], a[:, :3]), 0),
    ],
)
def test_products_with_vectors_and_sums_of_products_count(call, expected):
    assert count_flops(lambda: call(torch.ones(3, 4), torch.ones(4))) == expected


def test_what_has_no_formula_is_named():
    a = torch.eye(3)
    with pytest.warns(UserWarning, match="no formula for aten::_linalg_solve_ex"):
        count_flops(lambda: torch.linalg.solve(a, a))
    with pytest.warns(UserWarning, match="aten::_cdist_forward"):
        count_flops(lambda: torch.cdist(a, a))


def test_a_custom_kernel_is_named():
    @torch.library.custom_op("mpbook_tests::double", mutates_args=())
    def double(x: torch.Tensor) -> torch.Tensor:
        return 2 * x

    with pytest.warns(UserWarning, match="mpbook_tests::double"):
        count_flops(lambda: double(torch.ones(2)))


@pytest.mark.parametrize(
    "make",
    [
        lambda: (nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.GELU()), (2, 3, 8, 8)),
        lambda: (nn.TransformerEncoderLayer(16, 2, 32), (4, 3, 16)),
        lambda: (nn.LSTM(16, 4, num_layers=2), (4, 3, 16)),
    ],
)
def test_ordinary_models_are_counted_whole_and_in_silence(make):
    module, shape = make()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert both(module, torch.randn(*shape))[1] > 0
