"""Failures of the public suites are explained like those of tests."""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite("lamella_kit.source_contract", "lamella_kit.source_reading")
