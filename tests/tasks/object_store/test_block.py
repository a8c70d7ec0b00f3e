import copy
import os
import pickle
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import prefect_imageqa
import pytest
from fault_proxy import FaultProxy, s3_error
from prefect.client.orchestration import get_client
from prefect_imageqa.tasks.errors import StoreError
from prefect_imageqa.tasks.object_store import s3 as s3_connection
from prefect_imageqa.tasks.object_store.credentials import S3Credentials
from prefect_imageqa.tasks.object_store.filesystems import open_filesystem
from prefect_imageqa.tasks.object_store.patience import Patience
from prefect_imageqa.tasks.object_store.store import ObjectStore, load_store

SECRET = "secret-7f3a"
TOKEN = "token-9c1e"
FIELDS: dict[str, Any] = {
    "access_key_id": "key-id",
    "secret_access_key": SECRET,
    "session_token": TOKEN,
    "endpoint_url": "http://minio:9000",
    "region": "eu-west-1",
}
CREDENTIALS = S3Credentials("key-id", SECRET, TOKEN, "http://minio:9000", "eu-west-1")


@pytest.fixture(scope="module")
def named(prefect_server: None) -> Iterator[ObjectStore]:
    """A saved block with its own credentials, as a user loads it."""
    ObjectStore(uri="s3://bucket/a", **FIELDS).save("minio", overwrite=True)
    yield load_store("minio")
    ObjectStore.delete("minio")


def documents() -> list[Any]:
    """All saved stores, with their secrets."""
    with get_client(sync_client=True) as client:
        found = client.read_block_documents_by_type("image-qa-store", include_secrets=True)
        return list(found)


def test_prefect_finds_the_block() -> None:
    (found,) = entry_points(group="prefect.collections", name="prefect_imageqa")
    assert found.load().ObjectStore is ObjectStore is prefect_imageqa.ObjectStore
    assert ObjectStore.get_block_type_slug() == "image-qa-store"


def test_s3_credentials_hold_the_fields_of_the_block() -> None:
    assert ObjectStore(uri="s3://bucket", **FIELDS).s3_credentials == CREDENTIALS
    assert ObjectStore(uri="s3://bucket").s3_credentials is None
    elsewhere = ObjectStore(uri="s3://bucket", endpoint_url="http://minio:9000").s3_credentials
    assert elsewhere == S3Credentials(endpoint_url="http://minio:9000")
    padded = FIELDS | {"secret_access_key": f"{SECRET}\n"}
    assert ObjectStore(uri="s3://bucket", **padded).s3_credentials == CREDENTIALS


def test_no_secret_is_shown() -> None:
    store = ObjectStore(uri="s3://bucket", **FIELDS)
    shown = [repr(store), str(store), store.model_dump_json(), repr(store.model_dump())]
    for text in [*shown, repr(store.s3_credentials), str(store.s3_credentials)]:
        assert SECRET not in text
        assert TOKEN not in text


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"secret_access_key": SECRET}, "both the access key ID and the secret"),
        ({"access_key_id": "key-id"}, "both the access key ID and the secret"),
        (FIELDS | {"credentials": "minio"}, "either credentials or the name"),
        ({"endpoint_url": f"http://user:{SECRET}@host"}, "plain http"),
        ({"endpoint_url": f"http://host:{SECRET}"}, "plain http"),
        ({"endpoint_url": "minio:9000"}, "plain http"),
        ({"uri": f"s3://key:{SECRET}@bucket"}, "s3://bucket/prefix"),
    ],
)
def test_invalid_fields_are_rejected_without_showing_secrets(
    fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(StoreError, match=message) as raised:
        ObjectStore(**({"uri": "s3://bucket"} | fields))
    assert SECRET not in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("dump", [pickle.dumps, copy.deepcopy], ids=["pickle", "deepcopy"])
def test_credentials_are_not_pickled(dump: Any) -> None:
    with pytest.raises(StoreError, match="cannot be pickled") as raised:
        dump(CREDENTIALS)
    assert SECRET not in str(raised.value)


def test_an_unsaved_store_with_secrets_is_not_pickled() -> None:
    store = ObjectStore(uri="s3://bucket/a", **FIELDS)
    with pytest.raises(StoreError, match="save this Image QA Store block first") as raised:
        pickle.dumps(store)
    assert SECRET not in str(raised.value)
    other = store.with_uri("s3://bucket/b")
    assert (other.uri, other.s3_credentials) == ("s3://bucket/b", CREDENTIALS)


def test_a_store_uses_the_credentials_of_the_block_it_names(named: ObjectStore) -> None:
    store = ObjectStore(uri="s3://other", credentials="minio")
    assert store.s3_credentials == CREDENTIALS
    elsewhere = ObjectStore(uri="s3://other", credentials="minio", endpoint_url="http://b:1")
    assert elsewhere.s3_credentials == CREDENTIALS.for_server("http://b:1", "")


def test_a_store_derived_from_a_saved_block_is_pickled_by_its_name(
    named: ObjectStore,
) -> None:
    derived = named.with_uri("s3://bucket/b")
    assert (derived.uri, derived.credentials) == ("s3://bucket/b", "minio")
    for store in (derived, derived.with_uri("s3://bucket/c")):
        assert store.s3_credentials == CREDENTIALS
        pickled = pickle.dumps(store)
        assert SECRET.encode() not in pickled
        assert TOKEN.encode() not in pickled
        assert pickle.loads(pickled).s3_credentials == CREDENTIALS  # noqa: S301
    pickled = pickle.dumps(named)
    assert SECRET.encode() not in pickled
    loaded = pickle.loads(pickled)  # noqa: S301
    assert (loaded.uri, loaded.s3_credentials) == (named.uri, CREDENTIALS)
    for document in documents():
        if document.name != "minio":
            assert SECRET not in str(document.data)
            assert TOKEN not in str(document.data)


@pytest.mark.usefixtures("prefect_server")
@pytest.mark.parametrize("name", ["no-such-block", "", "a/b", "No Block"])
def test_a_missing_block_is_reported_in_one_line(name: str) -> None:
    with pytest.raises(StoreError, match="there is no Image QA Store block named") as raised:
        load_store(name)
    assert "\n" not in str(raised.value)


def test_a_block_that_only_names_another_cannot_lend_credentials(named: ObjectStore) -> None:
    ObjectStore(uri="s3://b", credentials="minio").save("chained", overwrite=True)
    with pytest.raises(StoreError, match="name 'minio' itself"):
        ObjectStore(uri="s3://c", credentials="chained").read("x")


@pytest.fixture
def working(s3: str) -> dict[str, str]:
    """The fields of a store that works."""
    return {
        "uri": f"{s3}/a",
        "access_key_id": "test-key",
        "secret_access_key": "test-secret",
        "endpoint_url": os.environ["AWS_ENDPOINT_URL"],
    }


def test_copies_of_a_patient_store_share_its_patience_and_its_connection() -> None:
    store = ObjectStore(uri="s3://bucket/a", endpoint_url="http://minio:9000")
    patience = Patience(60)
    patient = store.with_patience(patience)
    copies = (patient, patient.with_uri("s3://bucket/b"))
    for each in copies:
        credentials = each.s3_credentials
        assert credentials is not None
        assert credentials.patience is patience
        assert credentials == store.s3_credentials
        assert credentials.for_server("http://b:1", "").patience is patience
        connection, _ = open_filesystem(each.uri, credentials)
        assert connection is open_filesystem(store.uri, store.s3_credentials)[0]
    assert ObjectStore(uri="s3://bucket").with_patience(patience).s3_credentials is not None
    assert store.s3_credentials is not None
    assert store.s3_credentials.patience.seconds == 0


def test_a_working_store_passes_the_check(working: dict[str, str]) -> None:
    store = ObjectStore(**working)
    store.check()
    assert store.list() == []


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"uri": "s3://no-such-bucket/a"}, "bucket does not exist; create it first"),
        ({"access_key_id": "unknown"}, "S3 credentials were rejected (InvalidAccessKeyId)"),
        ({"secret_access_key": SECRET}, "S3 credentials were rejected (SignatureDoesNotMatch)"),
        (
            {"endpoint_url": "http://127.0.0.1:1"},
            "S3 endpoint cannot be reached (connection refused)",
        ),
    ],
    ids=["no bucket", "wrong key", "wrong secret", "unreachable"],
)
def test_the_check_reports_what_is_wrong_in_one_line(
    changed: dict[str, str], message: str, working: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_connection, "_FIRST_BACKOFF", 0.001)
    store = ObjectStore(**(working | changed))
    with pytest.raises(StoreError) as raised:
        store.check()
    assert str(raised.value).startswith(f"{store.uri}: cannot write: the {message}")
    assert "\n" not in str(raised.value)
    assert SECRET not in str(raised.value)


def test_the_check_reports_which_permission_is_missing(s3: str, s3_proxy: FaultProxy) -> None:
    store = ObjectStore(uri=f"{s3}/denied", endpoint_url=s3_proxy.url)
    reason = "access denied; check the S3 credentials and the bucket's policy"
    for method, action in {"PUT": "write", "GET": "read", "DELETE": "remove"}.items():
        s3_proxy.set_rules([s3_error(403, "AccessDenied", method=method)])
        with pytest.raises(StoreError) as raised:
            store.check()
        assert str(raised.value) == f"{s3}/denied: cannot {action}: {reason}"


def test_the_check_reports_a_folder_that_cannot_be_created(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    store = ObjectStore(uri=str(tmp_path / "file"))
    with pytest.raises(StoreError) as raised:
        store.check()
    assert str(raised.value) == (
        f"{tmp_path / 'file'}: cannot write: a part of the path is a file, not a folder"
    )
