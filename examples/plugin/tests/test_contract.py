"""Whatever this plug-in brings composes, trains and resumes."""

from ablation.testing import Contract


class TestContract(Contract):
    plugin = "ablation-example"
