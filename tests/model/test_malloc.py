"""Memory is kept where the C library can, with a stand-in for the library."""

from exitlens.model import malloc


def test_memory_is_kept_where_the_library_can(monkeypatch):
    calls: list[tuple[int, int]] = []

    class Library:
        limit = 2**31

        def mallopt(self, name: int, value: int) -> int:
            if name == -3 and value > self.limit:
                return 0
            calls.append((name, value))
            return 1

    monkeypatch.setattr(malloc, "_library", Library)
    monkeypatch.setitem(malloc._state, "kept", False)
    assert malloc.keep_memory()
    assert not malloc.keep_memory()
    assert dict(calls) == {-1: 2**31 - 1, -3: 2**30}
    with malloc.hold_memory():
        pass
    assert malloc._state["kept"]
    assert malloc.keep_memory(False)
    with malloc.hold_memory():
        assert malloc._state["kept"]
    assert not malloc._state["kept"]
    assert dict(calls[-2:]) == {-1: 64 * 2**20, -3: 32 * 2**20}
    monkeypatch.setattr(Library, "limit", 32 * 2**20)  # what older glibc takes at most
    assert malloc.keep_memory()
    assert dict(calls[-2:]) == {-1: 2**31 - 1, -3: 32 * 2**20}
    malloc.keep_memory(False)
    monkeypatch.setattr(malloc, "_library", lambda: None)
    assert not malloc.can_keep_memory()
    assert not malloc.keep_memory()
