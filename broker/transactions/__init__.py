"""Transactions: what a log's leader asks and does, and their coordinators."""
