"""Conditions on the catalog's attributes: ``category = "drills" AND (price < 50 OR NOT in_stock)``.

The language::

    condition   price < 50        = != < <= > >= with text, a number, or true and false
                category IN ("drills", "saws")        NOT IN as well
                brand IS NULL                         IS NOT NULL as well
                in_stock                              an attribute that is true or false
    combined    NOT a     a AND b     a OR b     (a)            binding in this order
    attribute   letters, digits, _ and . ; any other name in backquotes: `price (net)`
    text        in double or single quotes; a quote inside is doubled
    dates       as text: "2024-01-03" or "2024-01-03 14:30"; where the attribute has a zone, one
                may follow, as Z or +02:00, and without one the text is read as UTC
    times       as text: "14:30" or "14:30:05"

Keywords are read in any case; text is compared exactly, and so are numbers, but where the
attribute holds floating-point numbers of 32 or 64 bits the given one is rounded to these first. As
in SQL, a comparison with a missing value is neither true nor false, and a product is kept only
where the whole is true. What is not a number (NaN) is missing.
"""

from __future__ import annotations

from mach.filters.parsing import Filter, parse_filter

__all__ = ["Filter", "parse_filter"]
