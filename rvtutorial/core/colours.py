"""The colours of classes: those that a configuration of Raster Vision names, and those of figures."""

# in a configuration, by the class numbers
COLOURS = "#E69F00 #56B4E9 #009E73 #F0E442 #0072B2 #D55E00 #CC79A7".split()
# in figures, by the names of classes; classes of other names get the others in turn
PALETTE = {"building": "#E69F00", "background": "#4A7298", "null": "#FFFFFF"}
OTHERS = ("#009E73", "#CC79A7", "#56B4E9", "#F0E442", "#D55E00", "#777777", "#882255",
          "#332288", "#999933", "#44AA99", "#DDAA99", "#000000")  # fmt: skip


def class_colours(
    names: list[str],  # Of the classes, in the order of their numbers
    null: str | None,  # The class that means "no answer"
) -> dict[str, str]:  # Class name -> colour, in the same order
    "Give each class the colour that it has in figures."
    others = iter(OTHERS * len(names))
    colours = {name: PALETTE.get(name) or next(others) for name in names}
    return colours | ({null: PALETTE["null"]} if null in names else {})
