"""The host key is read from a log, which is bytes from outside: what is no key is never taken for one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tp2.cluster.discover import read_host_key

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGp5dGhvbnB5dGhvbnB5dGhvbnB5dGhvbnB5dGhv"


def test_the_comment_is_no_part_of_the_key() -> None:
    assert read_host_key(f"{KEY} tp2\n") == read_host_key(KEY) == KEY


def test_other_lines_do_not_matter() -> None:
    assert read_host_key(f"warning: slow disk\r\n{KEY} tp2\r\nbye\n") == KEY


def test_after_a_restart_the_last_key_counts() -> None:
    assert read_host_key(f"{KEY.replace('IGp5', 'IHp5')}\n{KEY}\n") == KEY


def test_a_key_that_was_cut_off_or_quoted_is_none() -> None:
    assert read_host_key("ssh-ed25519 AAAA\x00\n") is None
    assert read_host_key(f"the key is {KEY}\n") is None
    assert read_host_key(f"ssh-rsa {KEY.split()[1]}\n") is None


@given(st.text())
def test_whatever_the_log_says_is_survived(log: str) -> None:
    key = read_host_key(log)
    assert key is None or (key in log and "\n" not in key)
