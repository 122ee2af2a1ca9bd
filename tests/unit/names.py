"""Names that try to break out of the XML they are written into."""

from hypothesis import strategies as st

# What XML can hold at all, with everything that means something in it.
NAMES = st.text(
    st.sampled_from("&<>\"'/ =;%$\\") | st.characters(categories=["L", "N", "P", "S", "Zs"]),
    min_size=1,
    max_size=40,
)
