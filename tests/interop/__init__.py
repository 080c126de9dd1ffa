"""What real issuers, clients and servers send: tables by who sends it, run by the tests of the part that reads it."""
