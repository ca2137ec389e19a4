"""Words of the simulated store."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

__all__ = ["COLORS", "FEATURES", "LINES", "MATERIALS", "TYPES", "ProductType", "brand_names"]


class ProductType(NamedTuple):
    """A kind of product."""

    name: str
    category: str
    price: float
    """Median price."""
    synonyms: tuple[str, ...]
    """What people also call it."""


def _types(category: str, *rows: tuple[str, float, str]) -> list[ProductType]:
    return [
        ProductType(name, category, price, tuple(filter(None, synonyms.split("|"))))
        for name, price, synonyms in rows
    ]


TYPES: tuple[ProductType, ...] = (
    *_types(
        "Electronics",
        ("Headphones", 80, "headset|earphones"),
        ("Television", 600, "tv|tele|smart tv"),
        ("Laptop", 900, "notebook|portable computer"),
        ("Keyboard", 60, "computer keyboard"),
        ("Monitor", 250, "screen|display"),
        ("Phone Charger", 20, "charging cable|power adapter"),
        ("Bluetooth Speaker", 70, "wireless speaker|music box"),
        ("Camera", 450, "photo camera|cam"),
        ("Router", 90, "wifi box|wlan router"),
        ("Power Bank", 35, "portable battery|battery pack"),
    ),
    *_types(
        "Kitchen",
        ("Coffee Maker", 90, "coffee machine|espresso machine"),
        ("Frying Pan", 35, "skillet|pan"),
        ("Blender", 55, "mixer|smoothie maker"),
        ("Kettle", 40, "water boiler|tea kettle"),
        ("Toaster", 45, "bread toaster"),
        ("Knife Set", 70, "kitchen knives|knives"),
        ("Cutting Board", 25, "chopping board"),
        ("Saucepan", 40, "pot|cooking pot"),
        ("Air Fryer", 110, "hot air fryer"),
        ("Lunch Box", 18, "bento box|food container"),
    ),
    *_types(
        "Furniture",
        ("Sofa", 700, "couch|settee"),
        ("Office Chair", 180, "desk chair|swivel chair"),
        ("Bookshelf", 110, "bookcase|shelf"),
        ("Dining Table", 400, "kitchen table|table"),
        ("Bed Frame", 350, "bed|bedstead"),
        ("Wardrobe", 320, "closet|armoire"),
        ("Nightstand", 75, "bedside table"),
        ("Floor Lamp", 85, "standing lamp|light"),
        ("Armchair", 260, "easy chair|recliner"),
        ("Shoe Rack", 45, "shoe storage"),
    ),
    *_types(
        "Sports",
        ("Running Shoes", 95, "trainers|sneakers|jogging shoes"),
        ("Yoga Mat", 30, "exercise mat|gym mat"),
        ("Dumbbell", 40, "hand weight|weights"),
        ("Tent", 180, "camping tent"),
        ("Sleeping Bag", 80, "mummy bag"),
        ("Bicycle Helmet", 60, "bike helmet|cycle helmet"),
        ("Football", 25, "soccer ball|ball"),
        ("Tennis Racket", 90, "racquet"),
        ("Hiking Boots", 130, "walking boots|trekking shoes"),
        ("Swimming Goggles", 20, "swim glasses"),
    ),
    *_types(
        "Clothing",
        ("Jacket", 90, "coat|anorak"),
        ("T-Shirt", 20, "tee|tshirt"),
        ("Jeans", 60, "denim|denim trousers"),
        ("Dress", 70, "gown|frock"),
        ("Sweater", 50, "jumper|pullover"),
        ("Socks", 12, "stockings"),
        ("Scarf", 25, "shawl"),
        ("Gloves", 22, "mittens"),
        ("Backpack", 65, "rucksack|school bag"),
        ("Sunglasses", 75, "shades"),
    ),
    *_types(
        "Garden",
        ("Lawn Mower", 280, "grass cutter|mower"),
        ("Garden Hose", 35, "water hose|hosepipe"),
        ("Flower Pot", 20, "planter|plant pot"),
        ("Hedge Trimmer", 120, "hedge cutter"),
        ("Barbecue Grill", 220, "bbq|grill"),
        ("Garden Bench", 150, "outdoor bench"),
        ("Wheelbarrow", 90, "barrow|garden cart"),
        ("Watering Can", 18, "water can"),
        ("Parasol", 80, "sun umbrella|sunshade"),
        ("Bird Feeder", 22, "bird house"),
    ),
)

COLORS: tuple[str, ...] = (
    "Black", "White", "Red", "Blue", "Green", "Yellow", "Grey", "Brown", "Beige", "Pink",
    "Purple", "Orange", "Turquoise", "Silver", "Gold", "Navy",
)  # fmt: skip
MATERIALS: tuple[str, ...] = (
    "Steel", "Oak", "Bamboo", "Leather", "Cotton", "Wool", "Aluminium", "Plastic", "Glass",
    "Ceramic", "Linen", "Carbon", "Rubber", "Mesh",
)  # fmt: skip
FEATURES: tuple[str, ...] = (
    "Waterproof", "Foldable", "Compact", "Wireless", "Organic", "Lightweight", "Extra Large",
    "Mini", "Heavy Duty", "Adjustable", "Rechargeable", "Vintage", "Insulated", "Silent",
)  # fmt: skip
LINES: tuple[str, ...] = (
    "Aero", "Nova", "Terra", "Pulse", "Orbit", "Vista", "Flux", "Prime", "Echo", "Delta",
    "Zen", "Atlas", "Comet", "Ridge", "Halo", "Spark",
)  # fmt: skip

_FIRST = (
    "Ba", "Cor", "Del", "Fen", "Gal", "Hal", "Jun", "Kor", "Lum", "Mar",
    "Nor", "Ol", "Per", "Quin", "Ros", "Sil", "Tor", "Ul", "Ver", "Zan",
)  # fmt: skip
_MIDDLE = ("a", "e", "i", "o", "u", "an", "er", "in", "or", "ul", "ba", "de", "li", "mo", "ta")
_LAST = ("co", "dex", "fit", "line", "lux", "max", "nix", "ra", "son", "tek", "va", "via", "wood")


def brand_names(count: int, rng: np.random.Generator) -> list[str]:
    """``count`` different invented names (at most 3,900)."""
    total = len(_FIRST) * len(_MIDDLE) * len(_LAST)
    picked = rng.permutation(total)[:count]
    return [
        _FIRST[n % len(_FIRST)]
        + _MIDDLE[n // len(_FIRST) % len(_MIDDLE)]
        + _LAST[n // (len(_FIRST) * len(_MIDDLE))]
        for n in picked.tolist()
    ]
