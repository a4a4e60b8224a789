"""The app against its own description: requests that follow it and requests that do not."""

from __future__ import annotations

import json
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis import checks

from tastetwin.serving.app.http import ENDPOINTS, PEOPLE_OF_PLACE
from tastetwin.serving.app.openapi import describe
from tests.serving.app.conftest import Product

pytestmark = pytest.mark.slow

SCHEMA: Any = schemathesis.openapi.from_dict(json.loads(describe((*ENDPOINTS, PEOPLE_OF_PLACE))))
NOT_CHECKED: Any = [
    checks.ignored_auth,  # its requests without a key would be sent with ours; see the matrix of callers
    checks.positive_data_acceptance,  # the description cannot say "either a review or a like"
]


@SCHEMA.parametrize()  # type: ignore[untyped-decorator]
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@pytest.mark.filterwarnings("ignore")
def test_every_answer_is_as_described(case: Any, shop: Product) -> None:
    """No input brings the app down, and no answer has a status, type or shape that its readers do not expect."""
    key = shop.server_key if case.operation.path in ("/v1/tokens", "/v1/users/{user}") else shop.token()
    headers = {"authorization": f"Bearer {key}"}
    case.call_and_validate(base_url=shop.url, headers=headers, excluded_checks=NOT_CHECKED)
