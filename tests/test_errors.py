import pickle
import sys

import pytest

import exitlens as xl
from exitlens.errors import import_extra


def test_errors_share_a_base_and_name_the_extra():
    names = [getattr(xl, name) for name in xl.__all__ if name.endswith("Error")]
    assert all(issubclass(error, xl.ExitlensError) for error in names)
    error = xl.errors.MissingExtraError("package", "x", "this")
    assert "pip install 'exitlens[x]'" in str(error)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


@pytest.mark.parametrize(
    ("module", "package"), [("pyarrow.parquet", "pyarrow"), ("ray.serve", "ray"), ("torch.utils.tensorboard", "tensorboard")]
)
def test_a_missing_package_is_called_as_pip_calls_it(monkeypatch, module, package):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(xl.errors.MissingExtraError, match=f"this needs the package '{package}'"):
        import_extra(module, "x", "this")
