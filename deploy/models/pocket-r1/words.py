"""Words and names for generated problems."""

WORDS = (
    "apple banana cherry orange lemon grape melon peach plum mango strawberry blueberry "
    "raspberry coconut papaya tomato potato carrot onion garlic pepper cabbage lettuce celery "
    "planet star moon sun comet galaxy rocket orbit gravity meteor saturn jupiter mercury venus "
    "house garden window door kitchen table chair pillow blanket mirror carpet ceiling bottle "
    "river ocean mountain valley forest desert island bridge tunnel harbor castle village city "
    "street market school library museum theater hospital church station airport railway ticket "
    "teacher student doctor nurse farmer baker painter singer dancer writer lawyer banker pilot "
    "sailor soldier engineer cat dog horse rabbit tiger lion monkey elephant giraffe zebra kitten "
    "puppy camel donkey turtle snake lizard spider beetle butterfly mosquito penguin eagle parrot "
    "pigeon sparrow chicken goose turkey salmon shark dolphin whale octopus lobster red green blue "
    "yellow purple violet silver golden black white brown scarlet winter summer autumn spring "
    "monday tuesday friday sunday january april august october december morning evening midnight "
    "hello world happy angry sleepy hungry clever gentle brave honest lucky quiet simple strange "
    "modern ancient narrow silent hidden broken frozen letter number puzzle answer question "
    "language grammar sentence word story poem novel chapter picture camera radio computer "
    "keyboard monitor printer network internet server engine router expert model token tensor "
    "matrix vector python kernel memory cache thread process system program compiler software "
    "hardware balloon coffee cookie butter cheese muffin noodle pizza pasta sandwich sugar honey "
    "chocolate vanilla cinnamon pumpkin pancake breakfast dinner lunch bread bottle glass spoon "
    "fork knife basket bucket hammer ladder needle scissors ribbon button pocket jacket trousers "
    "sweater sandal umbrella raincoat thunder lightning rainbow snowflake cloud storm wind level "
    "radar civic kayak noon madam racecar stats refer mississippi tennessee committee assess "
    "success address balloon bookkeeper coffee difference accommodate occurrence parallel possess "
    "nineteen eleven seventeen twenty hundred thousand million football baseball tennis hockey "
    "guitar violin piano trumpet music concert rhythm melody chorus orchestra festival holiday "
    "journey passport luggage suitcase hotel beach sand wave surf anchor captain treasure pirate "
    "dragon wizard magic knight princess kingdom queen king crown throne sword shield arrow "
    "friend mother father sister brother cousin uncle family people person child baby human robot "
    "cup map pen key box hat fox bee ant sky sea ice tea egg bag bus car toy zoo owl jam nut"
).split()

CITIES = (
    "Paris London Berlin Madrid Rome Vienna Oslo Tokyo Delhi Cairo Lima Boston Sydney Toronto "
    "Dublin Prague Lisbon Athens Warsaw Helsinki Seoul Nairobi Chicago Zurich Munich Kyoto Miami"
).split()

NAMES = "Alice Bob Carol Dave Erin Frank Grace Henry Ivan Judy Maria Omar Priya Tom Wei Zoe".split()

TOPICS = (
    "the French Revolution|black holes|quantum physics|the weather|love|football|cooking rice|"
    "climate change|the stock market|photosynthesis|Shakespeare|ancient Rome|machine learning|"
    "the moon landing|dinosaurs|jazz music|good coffee|my garden|the internet|vaccines|bread|"
    "the Pythagorean theorem|volcanoes|gravity|DNA|chess|politics|the ocean|space travel|"
    "Kubernetes|databases|poetry|sleep|honey bees|the Cold War|trains|dreams|history|cats"
).split("|")
