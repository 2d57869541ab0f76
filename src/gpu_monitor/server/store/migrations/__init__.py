"""The steps from one version of the server's tables to the next, run by `store/migrate`."""
