"""Where a store is: what a URL may say, and that nothing secret is in what is said of one."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claude_invoker.settings import Settings
from claude_invoker.store.place import BadPlace, Key, Place


def test_what_a_url_may_say() -> None:
    assert Place.parse("file:///srv/a%20b") == Place("file", directory=Path("/srv/a b"))
    assert Place.parse("s3://bucket") == Place("s3", bucket="bucket")
    whole = Place.parse("s3://bucket/some/prefix/?region=eu-central-1&endpoint=http://minio:9000")
    assert whole == Place(
        "s3", bucket="bucket", prefix="some/prefix", region="eu-central-1", endpoint="http://minio:9000"
    )


@pytest.mark.parametrize(
    "url",
    [
        "", "bucket", "/srv/store", "gs://bucket", "http://bucket", "file://host/srv", "file://srv", "file:///",
        "file:///srv?x=1", "s3://", "s3:///prefix", "s3://UPPER", "s3://b", "s3://bucket/a//b", "s3://bucket/../x",
        "s3://bucket/a?unknown=1", "s3://bucket?endpoint=minio:9000", "s3://bucket?endpoint=http://minio/path",
        "s3://bucket?endpoint=http://u:p@minio", "s3://bucket?region=EU%20", "s3://bucket#x", "s3://[bucket", "s3://bu[]cket",
    ],
)  # fmt: skip
def test_what_it_may_not(url: str) -> None:
    with pytest.raises(BadPlace):
        Place.parse(url)


@pytest.mark.parametrize(
    "url",
    [
        "s3://AKIA:hunter2secret@bucket/x", "s3://bucket?endpoint=https://AKIA:hunter2secret@minio",
        "s3://bucket?secret_access_key=hunter2secret", "s3://bucket?HUNTER2secret=1", "s3://bucket/x#hunter2secret",
        "hunter2secret://bucket", "s3://hunter2_SECRET!", "file:///x?hunter2secret",
    ],
)  # fmt: skip
def test_a_secret_in_a_url_is_refused_and_not_said_again(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadPlace) as refused:
        Place.parse(url)
    assert "hunter2" not in str(refused.value).lower()
    monkeypatch.setenv("INVOKER_STORE", url)
    with pytest.raises(ValueError) as unusable:
        Settings()
    assert all("hunter2" not in item["msg"].lower() for item in unusable.value.errors(include_input=False))  # type: ignore[attr-defined]


@given(st.text(max_size=40))
def test_any_text_is_a_place_or_refused(text: str) -> None:
    for url in (text, f"s3://{text}", f"s3://bucket/{text}", f"s3://bucket?endpoint={text}", f"file://{text}"):
        try:
            place = Place.parse(url)
        except BadPlace:
            continue
        assert ".." not in place.prefix.split("/") and place.directory != Path("/")


def test_a_key_is_in_no_text_of_itself() -> None:
    assert Key.parse("ID:SE/CR+ET\n") == Key("ID", "SE/CR+ET")
    assert Key.parse("ID:SECRET:a:token") == Key("ID", "SECRET", "a:token")
    assert "SECRET" not in repr(Key("ID", "SECRET"))
    for wrong in ("", "ID", "ID:", ":SECRET", "ID: SECRET", "I\nD:SECRET"):
        with pytest.raises(BadPlace):
            Key.parse(wrong)
