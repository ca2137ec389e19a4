"""Writing logs in every format that the trainer reads."""

import csv
import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq


def write_rows(path, rows):
    """Write dictionaries in the format that the name calls for; lists by ``|`` in CSV and TSV."""
    name = path.name.removesuffix(".gz")
    opened = gzip.open if path.name.endswith(".gz") else open
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=7)
    elif name.endswith(".jsonl"):
        with opened(path, "wt", encoding="utf-8") as file:
            for row in rows:
                file.write(json.dumps(row) + "\n")
    else:
        with opened(path, "wt", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, delimiter="\t" if name.endswith(".tsv") else ",")
            writer.writerow(rows[0])
            for row in rows:
                writer.writerow(
                    "|".join(value) if isinstance(value, list) else value for value in row.values()
                )
    return path
