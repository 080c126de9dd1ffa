import unittest

from basket import total


class Total(unittest.TestCase):
    def test_an_empty_basket_costs_nothing(self):
        self.assertEqual(total({}, []), 0)

    def test_articles_are_added(self):
        self.assertEqual(total({"tea": 350, "cup": 900}, [("tea", 1), ("cup", 1)]), 1250)
