"""Reads datasets from files and folders: tables as columns, images by class; nothing is lost without a word."""
