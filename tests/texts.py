"""A tiny text classifier of transformers, with exits, for every test that needs one."""

import copy
from functools import cache

import torch
from torch import Tensor, nn

import exitlens as xl

WORDS = 40
LENGTH = 10
AT = ["bert.encoder.layer.0", "bert.encoder.layer.1"]


def config_values(**changes: object) -> dict[str, object]:
    """A configuration of three layers, as ``config.json`` has it."""
    return {
        "model_type": "bert",
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "vocab_size": WORDS,
        "max_position_embeddings": LENGTH + 2,
        "num_labels": 3,
        **changes,
    }


def make_bert(**changes: object) -> nn.Module:
    from transformers import AutoConfig, AutoModelForSequenceClassification

    torch.manual_seed(0)
    values = config_values(**changes)
    return AutoModelForSequenceClassification.from_config(AutoConfig.for_model(values.pop("model_type"), **values))


def make_texts(count: int = 12, seed: int = 0) -> dict[str, Tensor]:
    """Random tokens with 0 to ``LENGTH - 2`` positions of padding."""
    rng = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, WORDS, (count, LENGTH), generator=rng)
    lengths = torch.randint(2, LENGTH + 1, (count,), generator=rng)
    lengths[0], lengths[1] = LENGTH, 2
    mask = (torch.arange(LENGTH) < lengths[:, None]).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


def make_text_net(final: str = "head") -> xl.ExitNet:
    """Built once in a process, and copied."""
    return copy.deepcopy(_build_text_net(final))


@cache
def _build_text_net(final: str) -> xl.ExitNet:
    net = xl.attach(make_bert(), AT, 3, make_texts(), final=final).eval()
    torch.manual_seed(1)
    for k in range(net.num_exits - (final == "keep")):
        nn.init.normal_(net.head(k).attend.weight, std=2.0)
        nn.init.normal_(net.head(k).classifier.weight, std=2.0)
    return net
