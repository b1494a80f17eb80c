"""What answers keep when parts are swapped, on a network that reads one place and looks at another."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

import exitlens as xl
from exitlens.functional.maps import pair_samples
from exitlens.modalities import IMAGE
from exitlens.model.swaps import SwapBatch, SwapTrial, choose_greedily
from exitlens.workflow.faithfulness import DONORS

COUNT = 12


class Spread(nn.Module):
    """Channel 0 stays where it is; the means of the others are everywhere: deep features mix."""

    def forward(self, x: Tensor) -> Tensor:
        cells = nn.functional.avg_pool2d(x, 2)
        return torch.cat([cells[:, :1], cells[:, 1:].mean((2, 3), keepdim=True).expand(-1, -1, 4, 4)], 1)


def set_head(head, reads: int) -> None:
    with torch.no_grad():
        head.attend.weight.copy_(torch.tensor([[30.0, 0.0, 0.0]]))
        head.classifier.weight.zero_()
        head.classifier.weight[:, reads] = torch.tensor([-50.0, 50.0])
        head.classifier.bias.zero_()


@pytest.fixture(scope="module")
def measured():
    """Both exits look at the object; exit 0 decides by another place, the final exit by the object."""
    torch.manual_seed(0)
    layers = nn.Sequential(Spread(), nn.Conv2d(3, 3, 1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
    nn.init.dirac_(layers[1].weight)
    net = xl.attach(layers, ["0"], 2, torch.zeros(1, 3, 8, 8), layout="nchw")
    set_head(net.head(0), 2)
    set_head(net.head(1), 1)
    signs = torch.randint(0, 2, (COUNT, 2), generator=torch.Generator().manual_seed(1))
    pixels, masks = torch.full((COUNT, 3, 8, 8), 100, dtype=torch.uint8), torch.zeros(COUNT, 8, 8, dtype=torch.bool)
    pixels[:, 0, 2:4, 2:4], masks[:, 2:4, 2:4] = 200, True
    pixels[:, 1, 2:4, 2:4] = (200 * signs[:, 0]).to(torch.uint8)[:, None, None]
    pixels[:, 2, 6:8, 6:8] = (200 * signs[:, 1]).to(torch.uint8)[:, None, None]
    scaling = xl.data.Preprocess((8, 8), (100 / 255,) * 3, (100 / 255,) * 3)
    data = xl.data.ImageSet(pixels, signs[:, 0], ("no", "yes"), masks, scaling)
    partners = torch.stack([pair_samples(COUNT, seed) for seed in DONORS])
    same_cue = (signs[partners, 1] == signs[:, 1]).float().mean().item()
    says_yes = signs[:, 0].float().mean().item()  # donors' objects are painted over, which says no
    return xl.measure_faithfulness(net, data, grid=(4, 4), oracle_samples=8 * COUNT), (says_yes, same_cue)


def test_answers_bind_where_they_rest_on_what_the_map_shows(measured):
    result, (says_yes, same_cue) = measured
    binding = result.binding
    assert (binding.samples, binding.oracle_samples, binding.donors) == (COUNT, COUNT, 2)
    assert binding.maps.binding == (pytest.approx([same_cue] * 4), (1, 1, 1, 1))
    assert binding.maps.necessity == ((0, 0, 0, 0), pytest.approx([says_yes] * 4))
    assert binding.maps.area_under == pytest.approx((same_cue, 1))
    assert binding.maps.binding_error[1] == (0, 0, 0, 0)
    assert 0 < binding.maps.binding_error[0][0] < 0.3


def test_nulls_and_the_oracle(measured):
    binding = measured[0].binding
    assert binding.another == binding.maps  # all maps are the same here
    assert binding.above_another == ((0, 0, 0, 0), (0, 0, 0, 0))
    assert binding.centre.binding[1] == (1, 1, 1, 1)  # four pixels have one of the object's, and donors have nothing there
    assert binding.centre.necessity is binding.edges.necessity is binding.saliency.necessity is None
    assert binding.oracle == (1, 1)  # it finds both places
    assert binding.oracle_share == (0, None)


def test_a_swapped_background_changes_what_rests_on_it(measured):
    result, (_, same_cue) = measured
    assert result.cue_swap.change == pytest.approx((1 - same_cue, 0))
    assert result.cue_swap.beyond_final == pytest.approx((1 - same_cue, 0))
    assert result.cue_swap.beyond_final_error[0] == result.cue_swap.change_error[0] > 0
    assert result.dependence == (pytest.approx(0, abs=1e-6),)  # each depends on its own place, whatever the sample


def test_of_several_labels_all_are_kept_together():
    """Cells are labels here: the oracle first keeps the cell whose label the donor contradicts."""
    engine = SimpleNamespace(enter=lambda x: x, compute_logits=lambda k, x: x.flatten(1))
    net = SimpleNamespace(
        info=SimpleNamespace(task="multilabel"),
        input_spec=SimpleNamespace(modality=IMAGE),
        check_input=lambda x: x,
        num_exits=1,
    )
    inputs, donor = torch.tensor([[2.0, -2.0, 2.0]]).view(1, 1, 1, 3), torch.tensor([[2.0, 2.0, 2.0]]).view(1, 1, 1, 3)
    trial, nothing = SwapTrial(net, engine, None, inputs.flatten(2), None), torch.zeros(1, 1, 3).bool()
    batch = SwapBatch(slice(0, 1), trial.answers, inputs, [donor])
    both = batch._replace(donors=[donor, inputs])
    assert trial.keep(both, nothing, (0,)).tolist() == trial.lose(both, ~nothing, (0,)).tolist() == [[0.5]]
    p = torch.tensor(2.0).sigmoid().item()
    assert trial.support(batch, nothing, 0).item() == pytest.approx(p * (1 - p) * p)
    assert choose_greedily(trial, batch, 0, torch.ones(1, 1, 3)).tolist() == [[[False, True, False]]]
