"""Whatever a task prints, what is shown of it is lines of text: a terminal obeys nothing in them but colours."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from skate.core.output import NAME_CHARACTERS, RESET, name_to_show, shown_lines

ANYTHING = st.text(
    st.sampled_from("\x1b[]m;0123456789:?>J\r\n\t\x07\x08\x1e\x7f\x9b\u2713ab \ud800") | st.characters()
)
#: what a terminal may be sent: text, tabs, colours
HARMLESS = re.compile(r"(?:[^\x00-\x08\x0a-\x1f\x7f-\x9f]|\x1b\[[0-9;:]*m)*")


@given(ANYTHING)
def test_nothing_but_text_and_colours(text: str) -> None:
    for line in shown_lines(text):
        assert HARMLESS.fullmatch(line)


@given(ANYTHING)
def test_colours_end_with_their_line(text: str) -> None:
    for line in shown_lines(text):
        colours = re.findall(r"\x1b\[[0-9;:]*m", line)
        assert not colours or colours[-1] in (RESET, "\x1b[m")


@given(st.text(st.characters(exclude_categories=["Cc"]) | st.sampled_from("\t\n")))
def test_text_stays_as_it_is(text: str) -> None:
    assert "\n".join(shown_lines(text)) == text


@given(ANYTHING)
def test_all_that_was_printed_is_there(text: str) -> None:
    """All but control characters, in order, beginning with the line that they were in."""
    plain = re.sub(r"[\x00-\x1f\x7f-\x9f]", "", text)
    shown = iter("".join(shown_lines(text)))
    assert all(character in shown for character in plain)


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("", [""]),
        ("a\n\nb", ["a", "", "b"]),
        ("windows\r\nlines\r", ["windows", "lines"]),
        ("\r 1%\r 2%", [" 1%", " 2%"]),
        ("\r", [""]),
        ("up\r(other pid=1) spoof", ["up", "(other pid=1) spoof"]),
        ("\x1b[2J\x1b]0;title\x07", ["\\x1b[2J\\x1b]0;title\\x07"]),
        ("\x1b[1;31mred", ["\x1b[1;31mred\x1b[0m"]),
        ("\x1b[31mred\x1b[0m plain", ["\x1b[31mred\x1b[0m plain"]),
        ("\x1b[>4;2mkeys\x1b[?25l", ["\\x1b[>4;2mkeys\\x1b[?25l"]),
        ("\x9b2J", ["\\x9b2J"]),
    ],
)
def test_examples(text: str, lines: list[str]) -> None:
    assert shown_lines(text) == lines


@given(ANYTHING)
def test_names_are_short_and_on_one_line(name: str) -> None:
    shown = name_to_show(name)
    assert len(shown) <= NAME_CHARACTERS
    assert not re.search(r"[\x00-\x1f\x7f-\x9f]", shown)
    assert name_to_show(shown) == shown
