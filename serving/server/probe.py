"""Short requests to a server of our own that show whether it works."""

import http.client
import json
from http import HTTPStatus

from ..metrics import Counters, parse_metrics

_SECONDS = 2.0
"""How long /health may take: it does not wait for the engine."""

_METRICS_SECONDS = 5.0
"""How long /metrics may take: the API process makes the page between the requests it prepares."""

_MAX_PAGE_BYTES = 8 * 1024 * 1024


class Probe:
    """Asks one server.

    The address must not be a wildcard.
    """

    def __init__(self, address: str, port: int, model: str, api_key: str | None) -> None:
        self._address, self._port, self._model = address, port, model
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}

    def is_healthy(self) -> bool:
        """Whether /health says so within two seconds. It does so although the engine hangs."""
        status, _ = self._ask("GET", "/health", _SECONDS)
        return status == HTTPStatus.OK

    def counters(self) -> Counters | None:
        """What the engines do; None if the server does not say so."""
        status, page = self._ask("GET", "/metrics", _METRICS_SECONDS)
        return parse_metrics(page) if status == HTTPStatus.OK else None

    def answers(self, seconds: float) -> bool:
        """Whether a request for one token is answered in that time.

        A refusal is an answer as well, such as that the model has no chat template: it says
        nothing against the engine.
        """
        messages = [{"role": "user", "content": "Hello"}]
        body = {"model": self._model, "messages": messages, "max_tokens": 1, "temperature": 0}
        status, _ = self._ask("POST", "/v1/chat/completions", seconds, json.dumps(body))
        return 0 < status < HTTPStatus.INTERNAL_SERVER_ERROR or (status > 0 and self.is_healthy())

    def _ask(self, method: str, path: str, seconds: float, body: str = "") -> tuple[int, str]:
        """Status and text of the answer; status 0 if there is none."""
        connection = http.client.HTTPConnection(self._address, self._port, timeout=seconds)
        headers = self._headers | ({"Content-Type": "application/json"} if body else {})
        try:
            connection.request(method, path, body or None, headers)
            response = connection.getresponse()
            return response.status, response.read(_MAX_PAGE_BYTES).decode(errors="replace")
        except (OSError, http.client.HTTPException):
            return 0, ""
        finally:
            connection.close()
