"""Several invokers behind one address: whichever is asked for a run answers for it."""
