"""What a run leaves behind."""

from selavi.report.run_folder import RunFolder

__all__ = ["RunFolder"]
