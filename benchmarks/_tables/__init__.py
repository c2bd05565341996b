"""One table a benchmark, by subject; `table` puts them on the pages."""
