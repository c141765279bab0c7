"""The contract of ltm/api.py, of the family `letters`."""

from letters_and_dice.letters import Letters

from ltm.testing import ltm_contract_tests

TestLetters = ltm_contract_tests(Letters)
