"""Truth tests: closed forms, transcriptions and independent libraries."""
