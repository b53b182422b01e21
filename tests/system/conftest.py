"""Failures of the public suites are explained like those of tests."""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite("lamella.testing.source_contract", "lamella.testing.source_reading")
