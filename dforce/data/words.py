"""Pictures of words, drawn by code: 3 to 5 capital letters in the fonts that matplotlib ships, 16 x 48 pixels."""

from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dforce.data.batch import Batch
from dforce.data.draws import philox_uniform
from dforce.data.images import Images
from dforce.data.pixels import from_uint8

SHAPE = (3, 16, 48)  # (C, H, W)
SHORTEST, LONGEST = 3, 5
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
NULL = len(LETTERS) + 1  # code of every place of no text, for classifier-free guidance; 0 is a place after the end
FONTS = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSansMono-Bold", "DejaVuSerif-Bold")
MARGIN = 2               # pixels left free beside the largest text, in width and in height
SMALLEST = 0.85          # of the largest font size that fits
CONTRAST = 0.45          # least difference in brightness (0 to 1) of text and background
STREAM, TEXT, DROPPED = 40, 41, 42  # of the counter-based generator: looks of pictures, random letters, dropped text
NUMBERS = 10             # uniform numbers that the look of a picture takes

# Common English words. Every fifth is "test", the one after it "report", the others "tune"; no model trains on any.
WORDS = tuple("""
ABLE ACID AGE AIR ALSO APPLE ARM ARMY ART AWAY BABY BACK BAG BALL BAND BANK BASE BATH BEACH BEAR BED BELL BEST BIKE BIRD
BLACK BLUE BOARD BOAT BODY BONE BOOK BOX BOY BRAIN BREAD BROWN BUS CAKE CALL CAMP CAR CARD CASE CAT CHAIR CHILD CITY
CLOCK CLOUD COAT COLD COOK CORN COW CROSS CUP DANCE DARK DATE DAY DEEP DESK DOG DOOR DRAW DREAM DRINK DUCK DUST EAR
EARTH EAST EASY EGG EIGHT EVEN EYE FACE FACT FALL FARM FAST FEET FIELD FILM FIRE FISH FIVE FLAG FLOOR FOOD FORK FOUR FOX
FRESH FROG FRUIT FULL GAME GATE GIFT GIRL GLASS GLOVE GOAL GOAT GOLD GOOD GRASS GREEN GROUP HAIR HALF HAND HAPPY HARD
HAT HEAD HEART HELP HERO HIGH HILL HOME HOPE HORSE HOT HOTEL HOUSE ICE IDEA INK IRON JAM JAZZ JOB JOIN JOKE JUICE JUMP
JUST KEEP KEY KICK KIND KING KITE KNEE KNIFE LAKE LAMP LAND LAST LAW LEAF LEG LEMON LIFE LIGHT LION LIST LONG LOVE LUCK
LUNCH MAGIC MAP MARK MEAL MILK MIND MINT MONEY MONTH MOON MOUSE MOUTH MOVE MUSIC NAME NAVY NECK NEED NEST NET NEW NEXT
NIGHT NINE NOISE NORTH NOSE NOTE OAK OCEAN OIL ONE OPEN OVEN OWL PAGE PAINT PAN PAPER PARK PARTY PATH PEN PHONE PIANO
PIG PILOT PIN PLACE PLANE PLANT POEM POND PORT PRICE QUEEN QUICK QUIET QUIZ RADIO RAIN RED RICE RING RIVER ROAD
ROCK ROOF ROOM ROPE ROSE RULE SAFE SALT SAND SEA SEED SEVEN SHAPE SHEEP SHIP SHOE SHOP SILK SING SIX SKIN SKY
SLEEP SMALL SMILE SNOW SOAP SOFT SONG SOUP SPACE SPOON STAR STONE STORY SUGAR SUN SWIM TABLE TAIL TALK TAXI TEA TEAM TEN
TENT TIGER TIME TOE TOOTH TOWN TOY TRAIN TREE TRUCK TWO UNCLE UNDER VAN VASE VERY VIEW VOICE WALK WALL WARM WATER WAVE
WEEK WEST WHALE WHEEL WHITE WIND WINE WING WOLF WOOD WORD WORK WORLD YARD YEAR YES YOUNG ZEBRA ZERO ZONE ZOO
""".split())


def words_of(split: str) -> tuple[str, ...]:
    """The listed words of "tune", "test" or "report"; "all" of them."""
    if split not in ("tune", "test", "report", "all"):
        raise ValueError(f"words are of tune, test, report or all, got {split!r}")
    part = {0: "test", 1: "report"}
    return tuple(word for i, word in enumerate(WORDS) if split in ("all", part.get(i % 5, "tune")))


def checked_word(word: Any) -> str:
    """`word` in capitals; ValueError unless it is 3 to 5 letters from A to Z."""
    text = word.upper() if isinstance(word, str) else ""
    if not SHORTEST <= len(text) <= LONGEST or set(text) - set(LETTERS):
        raise ValueError(f"a word has {SHORTEST} to {LONGEST} letters from A to Z, got {word!r}")
    return text


def codes_of(words: Iterable[str]) -> Tensor:
    """Their letters [N, LONGEST] long: 1 to 26, and 0 after the end of a word."""
    return torch.tensor([[LETTERS.index(letter) + 1 for letter in word] + [0] * (LONGEST - len(word))
                         for word in map(checked_word, words)])


def words_from(codes: Tensor) -> list[str]:
    """The words of codes [N, LONGEST], the inverse of `codes_of`; "" for no text."""
    return ["".join(LETTERS[code - 1] for code in row if 0 < code < NULL) for row in codes.tolist()]


def text_cond(words: Sequence[str] | Tensor) -> dict[str, Any]:
    """The conditioning of pictures of these words, or of their codes."""
    return {"static": {"text": words if isinstance(words, Tensor) else codes_of(words)}}


def random_words(count: int, *, seed: int, step: int = 0) -> list[str]:
    """So many strings of random letters, 3, 4 and 5 of them alike often; one that is a listed word is turned round."""
    draws = philox_uniform(count * (LONGEST + 1), seed=seed, stream=TEXT, step=step).reshape(count, LONGEST + 1)
    lengths = SHORTEST + (draws[:, 0] * (LONGEST - SHORTEST + 1)).astype(int)
    letters = (draws[:, 1:] * len(LETTERS)).astype(int)
    words = ["".join(LETTERS[i] for i in row[:n]) for row, n in zip(letters, lengths, strict=True)]
    listed = set(WORDS)
    return [word if word not in listed else "Q" + word[1:] if "Q" + word[1:] not in listed else "XQJ" for word in words]


def draw_words(words: Sequence[str], *, seed: int, step: int = 0) -> np.ndarray:
    """uint8 [N, H, W, 3]: each word in a font, size, place and two colours that (seed, step, its number) decide."""
    looks = philox_uniform(len(words) * NUMBERS, seed=seed, stream=STREAM, step=step).reshape(-1, NUMBERS)
    return np.stack([_drawn(word, look) for word, look in zip(words, looks, strict=True)])


class WordBatches:
    """Pictures of random letters, or those of `images` in their order: batch s is a function of (seed, s).

    drop: share of texts made the null text.
    """

    def __init__(self, *, batch: int = 64, seed: int = 0, drop: float = 0.0, images: Images | None = None):
        if batch < 1 or not 0 <= drop <= 1:
            raise ValueError(f"batch must be positive and drop a share in [0, 1], got {batch} and {drop}")
        self.batch, self.seed, self.drop, self.images = batch, seed, drop, images

    def __call__(self, step: int) -> Batch:
        """x [B, 1, 3, 16, 48], cond["static"]["text"] [B, 5] long."""
        if self.images is None:
            words = random_words(self.batch, seed=self.seed, step=step)
            x = tokens_of(draw_words(words, seed=self.seed, step=step))
        else:
            index = torch.arange(step * self.batch, (step + 1) * self.batch) % len(self.images.x)
            x, words = self.images.x[index], [self.images.classes[i] for i in self.images.label[index].tolist()]
        codes = codes_of(words)
        dropped = philox_uniform(self.batch, seed=self.seed, stream=DROPPED, step=step) < self.drop
        codes = codes.masked_fill(torch.from_numpy(dropped)[:, None], NULL)
        whole = torch.ones(self.batch, 1, dtype=torch.bool)
        return Batch(x, whole, text_cond(codes), whole[:, 0])


def word_images(split: str, *, each: int = 4, seed: int = 0) -> Images:
    """So many pictures of each listed word of a split, on which no model trains; labels count `WORDS`."""
    words = [word for word in words_of(split) for _ in range(each)]
    return Images(tokens_of(draw_words(words, seed=seed)), torch.tensor([WORDS.index(word) for word in words]), WORDS)


def tokens_of(pictures: np.ndarray) -> Tensor:
    """[N, H, W, 3] 0..255 -> [N, 1, 3, H, W] in [-1, 1]."""
    return from_uint8(torch.from_numpy(pictures))[:, None].contiguous()


@cache
def _font(name: str, size: int) -> Any:
    import matplotlib
    from PIL import ImageFont

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"), size)


@cache
def _largest(name: str, letters: int) -> int:
    """The largest size of a font in which such a word of broad letters fits."""
    size = 6
    while True:
        left, top, right, bottom = _font(name, size + 1).getbbox("MHWHW"[:letters] if letters < LONGEST else "HOHOH")
        if right - left > SHAPE[2] - MARGIN or bottom - top > SHAPE[1] - MARGIN:
            return size
        size += 1


def _drawn(word: str, look: np.ndarray) -> np.ndarray:
    from PIL import Image, ImageDraw

    _, height, width = SHAPE
    name = FONTS[int(look[0] * len(FONTS))]
    font = _font(name, max(8, round(_largest(name, len(word)) * (SMALLEST + (1 - SMALLEST) * look[1]))))
    left, top, right, bottom = font.getbbox(word)
    free = np.maximum((width - (right - left), height - (bottom - top)), 0)
    place = (free * (0.35 + 0.3 * look[2:4])).astype(int)
    background, ink = _colours(look[4:])
    picture = Image.new("RGB", (width, height), background)
    ImageDraw.Draw(picture).text((int(place[0]) - left, int(place[1]) - top), word, fill=ink, font=font)
    return np.asarray(picture)


def _colours(look: np.ndarray) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Background and ink, of which one is pulled to black and one to white until they differ enough."""
    pair = look[:6].reshape(2, 3).copy()
    weights = np.array([0.299, 0.587, 0.114])  # brightness of red, green and blue (ITU-R BT.601)
    first, second = pair @ weights
    missing = CONTRAST - abs(first - second)
    if missing > 0:
        dark, light = (0, 1) if first < second else (1, 0)
        low, high = min(first, second), max(first, second)
        share = missing / (low + 1 - high)
        pair[dark] *= 1 - share
        pair[light] = 1 - (1 - pair[light]) * (1 - share)
    background, ink = (tuple(int(v) for v in (255 * colour).round()) for colour in pair)
    return background, ink
