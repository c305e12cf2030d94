import pytest

from graft.data.check.texts import is_broken


@pytest.mark.parametrize("text", ["é", "ü", "你好", "“quoted”", "naïve café – 5 €", "Привет", "🙂"])
@pytest.mark.parametrize("wrong", ["latin-1", "cp1252"])
def test_text_that_was_misread_is_told_from_text(text: str, wrong: str) -> None:
    assert not is_broken(f"so {text} it")
    misread = "".join(
        # As readers do where Windows-1252 has no character.
        bytes([byte]).decode(wrong, errors="ignore") or chr(byte)
        for byte in text.encode("utf-8")
    )
    assert is_broken(f"so {misread} it")


@pytest.mark.parametrize(
    "text",
    ["", "plain", "Ça va ? À bientôt", "Ãéô", "Å¡ no: šabc", "ÄÖÜ äöüß", "Â§ 5", "x²³ ±½ «a»"],
)
def test_letters_of_the_latin_alphabets_are_no_fault(text: str) -> None:
    broken = {"Å¡ no: šabc", "Â§ 5"}  # which are "š" and "§", misread
    assert is_broken(text) == (text in broken)


@pytest.mark.parametrize("text", ["a\ufffdb", "锟斤拷", "ï»¿text"])
def test_what_is_left_of_lost_text(text: str) -> None:
    assert is_broken(text)
