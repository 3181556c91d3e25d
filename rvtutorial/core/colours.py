"""The colours of classes: those that a configuration of Raster Vision names, and those of figures."""

# in a configuration, by the class numbers
COLOURS = "#E69F00 #56B4E9 #009E73 #F0E442 #0072B2 #D55E00 #CC79A7".split()
# in figures, by the names of classes; classes of other names get the others in turn
PALETTE = {"building": "#E69F00", "background": "#4A7298", "null": "#FFFFFF"}
OTHERS = ("#009E73", "#CC79A7", "#56B4E9", "#F0E442", "#D55E00", "#777777", "#882255",
          "#332288", "#999933", "#44AA99", "#DDAA99", "#000000")  # fmt: skip
