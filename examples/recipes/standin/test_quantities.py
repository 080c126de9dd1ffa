import unittest

from basket import total


class Quantities(unittest.TestCase):
    def test_two_of_an_article_cost_twice_as_much(self):
        self.assertEqual(total({"tea": 350}, [("tea", 2)]), 700)
