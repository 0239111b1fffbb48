from __future__ import annotations

import re
from datetime import UTC, datetime

import pytest

from vfs.storage.failures import Refused, Unavailable
from vfs.storage.pages import Entry, next_token, parse

HEAD = '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
ITEM = (
    "<Contents><Key>{}</Key><LastModified>2026-01-02T03:04:05.678Z</LastModified><ETag>&quot;abc&quot;</ETag>"
    "<Size>7</Size></Contents>"
)
NOON = datetime(2026, 1, 2, 3, 4, 5, 678000, tzinfo=UTC)


def page(*keys: str, more: str = "", encoding: str = "<EncodingType>url</EncodingType>") -> bytes:
    return (HEAD + encoding + "".join(ITEM.format(key) for key in keys) + more + "</ListBucketResult>").encode()


def test_entries_have_their_keys_decoded_once() -> None:
    entries = parse(page("a/b", "a+b", "a%2Bb", "%E2%98%83", "a%2520b", "a%0Ab"), "a")
    assert [entry.key for entry in entries] == ["a/b", "a b", "a+b", "☃", "a%20b", "a\nb"]
    assert entries[0] == Entry("a/b", 7, "abc", NOON)


def test_a_server_that_does_not_encode_is_taken_at_its_word() -> None:
    entries = parse(page("a+b%20", encoding=""), "a")
    assert [entry.key for entry in entries] == ["a+b%20"]


def test_a_listing_without_a_namespace_is_understood() -> None:
    entries = parse(page("a").replace(b' xmlns="http://s3.amazonaws.com/doc/2006-03-01/"', b""), "a")
    assert [entry.key for entry in entries] == ["a"]


def test_the_next_page_is_where_the_token_says() -> None:
    more = "<IsTruncated>true</IsTruncated><NextContinuationToken>t/+1</NextContinuationToken>"
    assert next_token(page("a", more=more), "a") == "t/+1"
    assert next_token(page("a", more=more.replace("t/+1", "&lt;a&amp;b&quot;&gt;")), "a") == '<a&b">'
    assert next_token(page("a", more="<IsTruncated>false</IsTruncated>"), "a") is None


def test_a_listing_that_ends_in_the_middle_is_an_error_and_not_a_short_one() -> None:
    with pytest.raises(Refused, match="without a continuation token"):
        next_token(page("a", more="<IsTruncated>true</IsTruncated>"), "a")
    with pytest.raises(Unavailable, match="not whole"):
        next_token(page("a", "b")[:-10], "a")


def test_an_entry_has_a_key_and_a_size_and_may_lack_all_else() -> None:
    whole = page("a")
    [entry] = parse(re.sub(rb"<(LastModified|ETag)>.*</\1>", b"", whole), "a")
    assert (entry.key, entry.size, entry.version) == ("a", 7, "")
    for lacking in (b"Key", b"Size"):
        with pytest.raises(Refused, match=lacking.decode()):
            parse(re.sub(rb"<%s>.*</%s>" % (lacking, lacking), b"", whole), "a")
    with pytest.raises(Refused, match="many"):
        parse(whole.replace(b">7<", b">many<"), "a")


def test_an_answer_that_is_no_listing_is_an_error_and_not_an_empty_one() -> None:
    with pytest.raises(Unavailable, match="html"):
        next_token(b"<html></html>", "a")
    with pytest.raises(Unavailable, match="html"):
        parse(b"<html></html>", "a")
