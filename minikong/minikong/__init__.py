"""minikong: a stand-in for Kong Gateway 3.9 in development and tests. Production is Kong."""
