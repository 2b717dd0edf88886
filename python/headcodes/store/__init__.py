"""What headcodes keeps on disk: finished cells of scans as Parquet, folders of runs replaced whole."""
