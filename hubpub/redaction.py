"""What nobody else may read: tokens, passwords and signatures, taken out of every text before it is shown or kept.

This is the one place that knows how they look. Every HubpubError passes through it when it is made, and so do
tracebacks, what the Hub's library logs, and annotations.
"""

from __future__ import annotations

import re

HIDDEN = "[hidden]"
_SECRETS: set[str] = set()
_QUERY = r"x-[a-z]+-[a-z-]*(?:signature|credential|token|key)|signature|sig|token|policy|key-pair-id|expires-signature"
_NAMED = (
    r"(?:[a-z]+[_-])*(?:access|refresh|id|session|auth|api|hub|hf|oidc|xet|request|security)[_-]?(?:token|key)"
    r"|(?:[a-z]+[_-])*(?:token|password|passwd|secret)|x-[a-z]+-[a-z-]*(?:signature|credential|token)"
)
# What is hidden already stays as it is: a text may pass here more than once.
_VALUE = r"(?!\[hidden\])[^\s&'\",;<>)}\]]+"
_PATTERNS = (
    # user:password@ of an address; a password may hold a slash where somebody forgot to encode it. The host stays: it
    # says which Hub was meant. A colon and digits are a port.
    (re.compile(r"(?<=://)[^/?#@\s'\"<>]+@"), f"{HIDDEN}@"),
    (re.compile(r"(?<=://)[^/?#@\s'\"<>:]*:(?!\d+(?:[/?#\s'\"]|$))[^\s'\"<>@]*@"), f"{HIDDEN}@"),
    (re.compile(r"(?<![A-Za-z0-9])(?:hf_(?:oauth|jwt|oidc|app)|api_org)_[A-Za-z0-9._~+/=-]{4,}"), HIDDEN),
    (re.compile(r"(?<![A-Za-z0-9])hf_[a-z]+_(?=[A-Za-z_-]*\d)[A-Za-z0-9._-]{12,}"), HIDDEN),
    (re.compile(r"(?<![A-Za-z0-9])hf_(?!transfer\b)[A-Za-z0-9]{6,}"), HIDDEN),
    (re.compile(r"(?<![A-Za-z0-9])(?:gh[a-z]_[A-Za-z0-9]{16,}|github_pat_\w{16,})"), HIDDEN),
    (re.compile(r"eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_.-]+"), HIDDEN),
    (
        re.compile(rf"(?i)\b((?:proxy-)?authorization[\"']?\s*[:=]\s*[\"']?)(?:(?!\[hidden\])[a-z]+\s+)?{_VALUE}"),
        rf"\g<1>{HIDDEN}",
    ),
    (re.compile(rf"(?i)\b(bearer|negotiate)\s+{_VALUE}"), HIDDEN),
    # "basic" is also a word: what follows it is a secret where it looks like base64.
    (re.compile(r"\b(?i:basic)\s+(?=[A-Za-z0-9+/]+[A-Z0-9+/=])[A-Za-z0-9+/_-]{6,}={0,2}"), HIDDEN),
    (re.compile(rf"(?i)((?:[?&]|&amp;)(?:{_QUERY})=)(?!\[hidden\])[^&\s'\"<>]+"), rf"\g<1>{HIDDEN}"),
    (re.compile(rf"(?i)(?<![a-z])((?:{_NAMED})(?:[\"']?\s*:\s*[\"']|=[\"']?)){_VALUE}"), rf"\g<1>{HIDDEN}"),
    (re.compile(rf"(?i)(?<![a-z])((?:password|passwd|pwd|secret)\s*:\s*){_VALUE}"), rf"\g<1>{HIDDEN}"),
    (re.compile(r"(?i)\b((?:set-)?cookie[\"']?\s*:\s*[\"']?)[^\r\n\"']+"), rf"\g<1>{HIDDEN}"),
)


def keep_secret(text: str | None) -> None:
    """Take `text` out of everything that is shown from now on, whatever it looks like."""
    if text and text.strip():
        _SECRETS.add(text.strip())


def redact(text: str) -> str:
    """`text` without tokens, passwords, signatures, and anything else that would let its reader in."""
    for secret in sorted(_SECRETS, key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    for pattern, instead in _PATTERNS:
        text = pattern.sub(instead, text)
    return text
