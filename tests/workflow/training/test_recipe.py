import pytest

import exitlens as xl
from exitlens.workflow.training.recipe import RECIPES, follow_recipe


def test_what_is_given_goes_before_the_recipe():
    values = follow_recipe("pretrained", {"learning_rate": 1e-5, "warm_up": 0.0, "layer_decay": None, "seed": 3})
    assert (values["learning_rate"], values["warm_up"]) == (1e-5, 0.0)
    assert "seed" not in values
    assert values["head_learning_rate"] == RECIPES["pretrained"].head_learning_rate
    with pytest.raises(xl.InputError, match=r"recipe: expected one of .*Did you mean 'pretrained'"):
        follow_recipe("pretraind", {})


def test_heads_learn_faster_than_a_pretrained_body():
    recipe = RECIPES["pretrained"]
    assert recipe.head_learning_rate > 4 * recipe.learning_rate
    assert RECIPES["scratch"].head_learning_rate is None
