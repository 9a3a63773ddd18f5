//! The 80 classes of COCO and words that people use for them in descriptions.
//!
//! Our own table, in the format of CHAIR's authors, so that theirs (`synonyms.txt` of LisaAnne/Hallucination, or `synonyms_refine.txt` of
//! RLAIF-V, which their repositories have no licence to copy) can be put in its place. Words that mean something else as often (`ball`, `plant`, `bat`,
//! `glass`, `counter`) are in it only where COCO's class is what a description of a photo nearly always means.

/// A line for each class, its name first.
pub const SYNONYMS: &str = "\
person, people, man, woman, child, kid, boy, girl, baby, toddler, infant, adult, guy, lady, gentleman, human, individual, pedestrian, rider, passenger, player, skier, snowboarder, surfer, skateboarder, skater, cyclist, bicyclist, biker, motorcyclist, driver, worker, chef, cook, waiter, waitress, baker, vendor, customer, shopper, tourist, visitor, spectator, audience, crowd, batter, catcher, pitcher, umpire, hitter, athlete, swimmer, diver, jockey, police, policeman, policewoman, officer, cop, soldier, fireman, firefighter, farmer, student, teacher, mother, father, mom, dad, son, daughter, brother, sister, husband, wife, bride, groom, couple, family, friend, teenager, teen, youth, male, female, dancer, musician, businessman, businesswoman, cowboy, sailor, pilot, commuter, bystander, onlooker, fisherman, grandmother, grandfather, someone, somebody
bicycle, bike, cycle, tricycle, unicycle, minibike
car, automobile, sedan, suv, taxi, cab, minivan, van, hatchback, convertible, limousine, limo, jeep, coupe
motorcycle, motorbike, motor bike, motor cycle, scooter, moped, dirt bike
airplane, plane, aeroplane, air plane, aircraft, jet, airliner, jetliner, jumbo jet, biplane, monoplane, seaplane
bus, minibus, double decker, school bus, trolley bus, coach bus
train, locomotive, tram, subway, caboose, streetcar, railcar, freight train, train car, steam engine
truck, pickup, lorry, semi, firetruck, fire truck, fire engine, pickup truck, tow truck, dump truck, semi truck, trailer truck
boat, ship, canoe, kayak, sailboat, rowboat, yacht, ferry, raft, dinghy, gondola, motorboat, speedboat, houseboat, tugboat, barge, vessel, fishing boat, sail boat
traffic light, stoplight, stop light, traffic signal, street signal, signal light
fire hydrant, hydrant, fireplug
stop sign
parking meter
bench, pew
bird, pigeon, duck, goose, seagull, gull, parrot, owl, eagle, hawk, ostrich, peacock, swan, chicken, rooster, hen, turkey, penguin, crow, raven, pelican, heron, crane bird, flamingo, sparrow, robin, finch, dove, hummingbird, woodpecker, falcon, vulture, parakeet, cockatoo, duckling, stork, toucan, emu
cat, kitten, kitty, feline, tabby, tomcat
dog, puppy, pup, canine, hound, poodle, terrier, bulldog, labrador, retriever, chihuahua, dachshund, beagle, collie, corgi, dalmatian, husky, pug, doggy
horse, pony, foal, colt, mare, stallion, racehorse
sheep, lamb, ram, ewe, goat
cow, cattle, bull, calf, ox, heifer, bison, steer
elephant
bear, panda, polar bear, grizzly, grizzly bear, black bear, brown bear, bear cub
zebra
giraffe
backpack, knapsack, rucksack, back pack, bookbag
umbrella, parasol
handbag, purse, wallet, pocketbook, hand bag, shoulder bag
tie, necktie, bow tie, bowtie, neck tie
suitcase, suit case, luggage, briefcase
frisbee, disc, flying disc
skis, ski
snowboard, snow board
sports ball, ball, baseball, basketball, football, soccer ball, tennis ball, volleyball, beach ball
kite
baseball bat, bat
baseball glove, mitt, baseball mitt, catcher's mitt
skateboard, skate board
surfboard, surf board, longboard, boogie board, bodyboard
tennis racket, racket, racquet, tennis racquet
bottle, water bottle, wine bottle, beer bottle
wine glass, wineglass, wine goblet, goblet
cup, mug, teacup, coffee cup, coffee mug
fork
knife, pocketknife, butter knife
spoon, teaspoon, tablespoon
bowl, salad bowl, mixing bowl
banana
apple
sandwich, burger, hamburger, cheeseburger, sub, panini, sub sandwich
orange, tangerine, clementine, mandarin
broccoli
carrot
hot dog, hotdog, chili dog, corn dog
pizza, pepperoni pizza, pizza pie
donut, doughnut
cake, cheesecake, cupcake, shortcake, birthday cake, wedding cake, layer cake
chair, seat, stool, armchair, recliner, lawn chair, rocking chair, beach chair, office chair, highchair, bar stool, barstool
couch, sofa, loveseat, settee, futon, sectional, love seat
potted plant, houseplant, house plant, pot plant
bed, bunk bed, mattress, crib, cot
dining table, table, desk, coffee table, kitchen table, picnic table, tabletop
toilet, urinal, commode, toilet bowl, lavatory, bidet, outhouse
tv, television, monitor, televison, tv screen, tv set, television set, computer monitor, flat screen
laptop, notebook computer, laptop computer, computer, macbook
mouse, computer mouse
remote, remote control, game controller, controller, wii remote
keyboard, computer keyboard
cell phone, phone, mobile phone, cellphone, telephone, smartphone, smart phone, iphone, mobile
microwave, microwave oven
oven, stove, range, cooktop, stovetop, stove top oven, stove top
toaster, toaster oven
sink, washbasin, basin
refrigerator, fridge, freezer
book, textbook, novel, notebook
clock, clock tower, alarm clock, wall clock
vase
scissors, scissor, shears
teddy bear, teddy, stuffed bear, stuffed animal
hair drier, hair dryer, hairdryer, blow dryer, blowdryer
toothbrush, tooth brush
";

/// Animals that a describer calls young or grown, and the class of each; the ones without a class are not in COCO.
pub const ANIMALS: [(&str, Option<&str>); 12] = [
    ("bird", Some("bird")),
    ("cat", Some("cat")),
    ("dog", Some("dog")),
    ("horse", Some("horse")),
    ("sheep", Some("sheep")),
    ("cow", Some("cow")),
    ("elephant", Some("elephant")),
    ("bear", Some("bear")),
    ("zebra", Some("zebra")),
    ("giraffe", Some("giraffe")),
    ("animal", None),
    ("cub", None),
];

/// Runs of words that name no object of COCO though a part of them would.
pub const NO_OBJECTS: [&str; 3] = ["home plate", "train track", "train tracks"];
