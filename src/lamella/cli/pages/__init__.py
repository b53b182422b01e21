"""Pages for a browser: markup that escapes, charts, the report. Only `report` and `ui` load them."""
