"""Files of claims."""

from pathlib import Path


def write_claims(folder: Path, *claims: str) -> Path:
    """Write claims, each in YAML without its id, words and source, into a file; their ids are c0, c1 …"""
    path = folder / "claims.yaml"
    path.write_text("".join(f"- {{id: c{i}, claim: words, source: test, {claim}}}\n" for i, claim in enumerate(claims)))
    return path
