import pytest
from prefect_imageqa.flows.workers import hosted_engine
from prefect_imageqa.flows.workers.engine import open_engine
from prefect_imageqa.tasks.errors import ImageQAError
from prefect_imageqa.tasks.runs.workers import Workers


@pytest.mark.parametrize("engine", ["ray", "dask"])
def test_an_engine_that_is_not_installed(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(hosted_engine._PACKAGES, engine, "package_that_nobody_has")
    workers = Workers.model_validate({"workers": 2, "engine": engine})
    wanted = rf"not installed: pip install 'prefect-imageqa\[{engine}\]'"
    with pytest.raises(ImageQAError, match=wanted), open_engine(workers):
        pass
