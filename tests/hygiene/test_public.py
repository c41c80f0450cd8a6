"""What `import adjourn` offers."""

import adjourn


def test_all_is_sorted_and_without_repetition():
    assert list(adjourn.__all__) == sorted(set(adjourn.__all__))


def test_all_names_exist():
    assert [name for name in adjourn.__all__ if not hasattr(adjourn, name)] == []
