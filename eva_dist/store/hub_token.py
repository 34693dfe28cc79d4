"""Which token is sent to which host. Any reference may name a host, so most hosts must get none.

the Hub, and the host of HF_ENDPOINT    what every Hub client sends: HF_TOKEN, else the stored login
any other host, over https              EVA_DIST_TOKEN
any other host, over http               EVA_DIST_TOKEN, if it is this machine; else nothing: anybody could read it
"""

import ipaddress
import os
from urllib.parse import urlsplit

from huggingface_hub import constants

VARIABLE = "EVA_DIST_TOKEN"
_HUB = "https://huggingface.co"


def token_for(endpoint: str) -> str | bool | None:
    """Return the token as `huggingface_hub` takes it: None is the one that it finds itself, False is none."""
    if _is_of_the_environment(endpoint):
        return None
    return (_is_private(endpoint) and os.environ.get(VARIABLE, "").strip()) or False


def how_to_give(endpoint: str) -> str:
    """Tell a person, for an error message, how to give a token for that host."""
    if _is_of_the_environment(endpoint):
        return "set HF_TOKEN"
    others = "HF_TOKEN goes to the Hub and to the host of HF_ENDPOINT alone"
    if _is_private(endpoint):
        return f"set {VARIABLE} ({others})"
    return f"use https:// and set {VARIABLE}, for it goes over plain http to this machine alone ({others})"


def _is_of_the_environment(endpoint: str) -> bool:
    return _origin_of(endpoint) in (_origin_of(constants.ENDPOINT), _origin_of(_HUB))


def _is_private(endpoint: str) -> bool:
    """Tell whether nobody on the way can read what is sent: over https, or to this machine."""
    scheme, host, _ = _origin_of(endpoint)
    if scheme == "https" or host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _origin_of(url: str) -> tuple[str, str, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port or {"http": 80, "https": 443}.get(parts.scheme)
