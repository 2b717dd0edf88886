"""The store of a scan: finished cells as Parquet files that other tools read too."""
