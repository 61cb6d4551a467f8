"""Paths that a page on this machine must refuse."""


def wrong_tokens(url: str) -> tuple[str, ...]:
    """Paths with a token that is empty, cut, too long, or different in its last character.

    Args:
        url: The page's URL, which ends with its token.
    """
    path = url[url.rindex("/") :]
    return "", path[:-1], f"/x{path[1:]}", path[:-1] + ("y" if path.endswith("x") else "x")
